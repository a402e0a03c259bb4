"""The live view of a run in rerun: pictures, the arms, the plan that they have, joints and events.

A thread of its own draws the newest cycle, ten times a second, so that the loop does not wait for
it. It takes its part of the processor all the same: measure latencies without it.
"""

import threading

import numpy as np

from commands import BadInput
from robot_setup import ARMS
from safety import skeleton

PERIOD = 0.1  # seconds between two drawings
MEASURED = (120, 120, 120)
PLANNED = ((31, 119, 180), (255, 127, 14))  # left, right
JOINTS = ("base", "shoulder", "elbow", "wrist_1", "wrist_2", "wrist_3", "gripper")


class View:
    """What a run shows. path: a file *.rrd to write; "" opens the viewer. cell: see safety.py.

    Raises BadInput without rerun.
    """

    def __init__(self, path, cameras, cell):
        try:
            import rerun
        except ImportError as e:
            raise BadInput("--view needs rerun: pip install 'rerun-sdk>=0.23'") from e
        self.rerun = rerun
        self.stream = rerun.RecordingStream("realrobot")
        if path:
            self.stream.save(path)
        else:
            self.stream.spawn()
        self.cameras = cameras
        self.cell = cell
        self.newest = None
        self.told = 0  # events that were shown
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def show(self, row, points, events):
        """Show a cycle at the next drawing.

        row: of the log. points (n, 2, 7): the targets that both arms have, None before the first.
        events: all of the log's until now.
        """
        self.newest = row, points, events

    def run(self):
        """Draw until the end."""
        while not self.ended.wait(PERIOD):
            self.draw_newest()

    def draw_newest(self):
        """Draw the newest cycle, unless it has been drawn."""
        newest = self.newest
        self.newest = None
        if newest is not None:
            self.draw(*newest)

    def draw(self, row, points, events):
        """Draw a cycle."""
        log = self.stream.log
        self.stream.set_time("time", duration=row["begun"])
        for name in self.cameras.times():
            frame = self.cameras.newest(name)
            if frame.ndim == 3:
                log(f"cameras/{name}", self.rerun.Image(frame))
        for i, side in enumerate(ARMS):
            links = skeleton(row["q"][i, :6], i, self.cell)
            log(f"arms/{side}", self.rerun.LineStrips3D([links], colors=[MEASURED]))
            if points is not None:
                tool = skeleton(points[:, i, :6], i, self.cell)[:, -1]
                path = np.concatenate([links[-1:], tool])
                log(f"arms/{side}/plan", self.rerun.LineStrips3D([path], colors=[PLANNED[i]]))
            for name, measured, target in zip(JOINTS, row["q"][i], row["target"][i]):
                log(f"{side}/{name}/measured", self.rerun.Scalars(measured))
                log(f"{side}/{name}/target", self.rerun.Scalars(target))
        latency = 1e3 * (row["commanded"] - min(row["state_t"]))
        if np.isfinite(latency):
            log("milliseconds/newest_state_to_command", self.rerun.Scalars(latency))
        for event in events[self.told :]:
            log("events", self.rerun.TextLog(event["text"]))
        self.told = len(events)

    def close(self):
        """Draw what is left, and end."""
        self.ended.set()
        self.thread.join(2)
        self.draw_newest()
        self.stream.flush()
        self.stream.disconnect()
