"""What a person sees of a run: a progress bar, lines on the terminal, JSON lines, TensorBoard.

One process of a run has a monitor; what it is given are numbers, pictures and lines of text. The
files are made to survive a kill: a line of metrics.jsonl is on disk when `scalars` returns, and a
run that is resumed drops the lines of the steps that it is about to do again. Records of
TensorBoard are written by TensorBoard's own writer.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from osdhuman_jax.cli import bar, say
from osdhuman_jax.disk import append_line, json_lines, write_text
from osdhuman_jax.images.codec import encode_png, write_png

# Protobuf makes these classes at import time, where type checkers cannot see them.
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # type: ignore[attr-defined]
Summary = summary_pb2.Summary  # type: ignore[attr-defined]

# A run says after step 20 how long it will take, judged by the steps after the first two, which
# compile.
SETTLED, MEASURED = 2, 20


class Monitor:
    """Writes WORKDIR/metrics.jsonl, WORKDIR/tensorboard/ and WORKDIR/samples/."""

    def __init__(self, workdir: Path, first_step: int, steps: int):
        self._lines = workdir / "metrics.jsonl"
        self._samples = workdir / "samples"
        self._samples.mkdir(parents=True, exist_ok=True)
        self._forget_after(first_step)
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # TensorBoard drops what an earlier try logged after this step.
        start = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(step=first_step, wall_time=time.time(), session_log=start))
        self._bar = bar(steps, "step", first_step)
        self._first, self._steps = first_step, steps
        self._settled = 0.0  # when the steps had been compiled

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run is about to do again."""
        # A kill may have left half a line at the end, which is dropped with them.
        if self._lines.exists():
            data = self._lines.read_bytes()
            lines = json_lines(data[: data.rfind(b"\n") + 1])
            kept = [json.dumps(x) + "\n" for x in lines if x.get("step", step + 1) <= step]
            write_text(self._lines, "".join(kept))

    def advance(self) -> None:
        """One step is done; after some of them the person is told how long the run will take."""
        self._bar.update()
        here, left = int(self._bar.n) - self._first, self._steps - int(self._bar.n)
        if here == SETTLED:
            self._settled = time.monotonic()
        if here == MEASURED and left > 0:
            each = (time.monotonic() - self._settled) / (MEASURED - SETTLED)
            hours = left * each / 3600
            self.say(f"{each:.3g} s a step: the {left} steps that are left take {hours:.2g} h")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at a step; one that is not finite is null in the JSON, which has no NaN."""
        known = {k: v if math.isfinite(v) else None for k, v in values.items()}
        append_line(self._lines, json.dumps({"step": step, **known}, allow_nan=False))
        summary = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._write(step, Summary(value=summary))
        # The bar has room for few: how well it goes, and how fast.
        shown = {
            k: f"{v:.4g}" for k, v in values.items() if k in ("loss", "val_psnr_y", "images_s")
        }
        self._bar.set_postfix(shown, refresh=False)

    def say(self, line: str) -> None:
        """Tell the person at the terminal, above the bar."""
        say(line)

    def grid(self, step: int, picture: np.ndarray) -> None:
        """Save a uint8 RGB picture (H, W, 3) of a step."""
        write_png(self._samples / f"{step:07d}.png", picture)
        image = Summary.Image(
            encoded_image_string=encode_png(picture),
            height=picture.shape[0],
            width=picture.shape[1],
            colorspace=3,
        )
        self._write(step, Summary(value=[Summary.Value(tag="samples", image=image)]))

    def _write(self, step: int, summary: object) -> None:
        """Give TensorBoard a `Summary` of a step."""
        self._events.add_event(Event(step=step, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """End the bar, and write what TensorBoard's writer still holds."""
        self._bar.close()
        self._events.close()
