"""What the robot loop sees beside the arms themselves: pictures, each with its capture time.

  cameras = Cameras({"front": source, "left_wrist": source}, rate=30)
  cameras.start()
  cameras.times()                       {"front": when its newest frame was captured}
  cameras.at("front", [t - 0.1, t])     the frames captured nearest to then, or what `encoded` made

A source is a function that returns the next frame and when it was captured, by time.monotonic(), or
None if there is none. Each has a thread of its own, so a camera that hangs delays no other.
"""

import threading
import time
from collections import deque

import numpy as np

from commands import BadInput

KEPT = 3.0  # seconds of frames that are kept


class Cameras:
    """The newest frames of sources {name: function}; rate: of the cameras, in Hz.

    encoded: a function of a picture's camera and the picture (H, W, 3), to be called once for each,
    in the camera's thread. It may be set until start().
    """

    def __init__(self, sources, rate=30, clock=time.monotonic, encoded=None):
        self.sources = sources
        self.rate = rate
        self.clock = clock
        self.encoded = encoded
        self.frames = {name: deque(maxlen=int(KEPT * rate) + 1) for name in sources}
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.threads = []

    def start(self, wait=10):
        """Begin to capture; return when each has a frame. Raises BadInput if one has none."""
        for name in self.sources:
            thread = threading.Thread(target=self.run, args=(name,), daemon=True)
            thread.start()
            self.threads.append(thread)
        end = time.monotonic() + wait
        while any(not kept for kept in self.frames.values()) and time.monotonic() < end:
            time.sleep(0.01)
        silent = [name for name, kept in self.frames.items() if not kept]
        if silent:
            self.close()
            raise BadInput(
                f"no picture from {' and '.join(silent)}: check its cable and its number"
            )

    def run(self, name):
        """Capture a camera's frames at absolute times until the end."""
        due = time.monotonic()
        while not self.ended.is_set():
            self.capture(name)
            due = max(due + 1 / self.rate, time.monotonic() - 1 / self.rate)
            self.ended.wait(max(0, due - time.monotonic()))

    def capture(self, name):
        """Take one frame of a camera."""
        found = self.sources[name]()
        if found is not None:
            t, frame = found
            seen = self.encoded(name, frame) if self.encoded and frame.ndim == 3 else frame
            with self.lock:
                self.frames[name].append((t, frame, seen))

    def times(self):
        """{name: when its newest frame was captured}."""
        with self.lock:
            return {name: kept[-1][0] for name, kept in self.frames.items()}

    def at(self, name, times):
        """What was captured nearest to these times: (n, ...), frames or what was made of them."""
        with self.lock:
            kept = list(self.frames[name])
        captured = np.array([t for t, _, _ in kept])
        return np.stack([kept[np.abs(captured - t).argmin()][2] for t in times])

    def newest(self, name):
        """The newest frame of a camera."""
        with self.lock:
            return self.frames[name][-1][1]

    def measured(self):
        """{name: frames a second, as captured}."""
        with self.lock:
            kept = {name: [t for t, _, _ in frames] for name, frames in self.frames.items()}
        return {
            name: (len(t) - 1) / (t[-1] - t[0]) if len(t) > 1 and t[-1] > t[0] else 0.0
            for name, t in kept.items()
        }

    def close(self):
        """Stop capturing."""
        self.ended.set()
        for thread in self.threads:
            thread.join(1)


# ---- sources -------------------------------------------------------------------------------------


def recorded(pictures):
    """A source of recorded pictures (N, ...), one after another and from the beginning again."""
    state = {"n": -1}

    def source():
        state["n"] = (state["n"] + 1) % len(pictures)
        return time.monotonic(), pictures[state["n"]]

    return source


class TwinScene:
    """Sources of what is seen of a served twin: each draws its own copy in the scene's state.

    server: a ServerProcess of ur_server.py. task: a task of task_ur5.py.
    """

    def __init__(self, server, task):
        from task_ur5 import SIDE, scene_of

        self.server = server
        self.scene = scene_of(task.name)
        self.size = SIDE
        self.lock = threading.Lock()
        self.success = False

    def read(self):
        """The scene now: its time and the twin's state."""
        with self.lock:
            told = self.server.tell("scene")
        self.success = self.success or bool(told["success"])
        return told["t"], np.array(told["state"])

    def source(self, name):
        """The source of a camera of the twin, or of "state", numbers."""
        from task_ur5 import state_of
        from twin import Twin

        twin = Twin(self.scene, size=self.size)

        def look():
            t, state = self.read()
            twin.set_state(state)
            return t, state_of(twin) if name == "state" else twin.draw(name)

        return look


def realsense(serial, shape, rate):
    """The source of a RealSense camera by its serial number; shape (H, W, 3) of its pictures.

    Its middle square is scaled down. Not tried on hardware. Raises BadInput without the package.
    """
    try:
        import cv2
        import pyrealsense2 as rs
    except ImportError as e:
        raise BadInput(
            "a RealSense camera needs pyrealsense2 and OpenCV: pip install pyrealsense2 "
            "(==2.54.2.5684 for an L515)"
        ) from e
    pipeline = rs.pipeline()
    config = rs.config()
    config.enable_device(serial)
    config.enable_stream(rs.stream.color, 640, 480, rs.format.rgb8, int(rate))
    try:
        pipeline.start(config)
    except RuntimeError as e:
        raise BadInput(f"RealSense {serial}: {e}: check its cable and serial number") from e

    def source():
        got, frames = pipeline.try_wait_for_frames(1000)
        now = time.monotonic()
        if not got:
            return None
        # The global time of the frame is of the system's clock.
        age = max(0.0, time.time() - frames.get_timestamp() / 1e3)
        picture = np.asarray(frames.get_color_frame().get_data())
        side = min(picture.shape[:2])
        top = (picture.shape[0] - side) // 2
        left = (picture.shape[1] - side) // 2
        square = picture[top : top + side, left : left + side]
        small = cv2.resize(square, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
        return now - min(age, 1.0), small

    return source
