"""A window with the annotated picture; Tk, because OpenCV's headless build has no windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.outputs.pixels import square_pixels
from deploy.pipeline.live import Live

if TYPE_CHECKING:
    from tkinter import PhotoImage


class Window:
    """Shows one stream; the main thread calls :meth:`tick`.

    Raises:
        RuntimeError: Tk is not installed, or there is no display.
    """

    def __init__(self, live: Live, stream: int = 0) -> None:
        try:
            import tkinter
        except ImportError as error:
            raise RuntimeError("Tk is not installed (apt install python3-tk)") from error
        try:
            self._root = tkinter.Tk(className="Med-DisSeg")
        except tkinter.TclError as error:
            raise RuntimeError(str(error)) from error
        self._tk, self._live, self._stream = tkinter, live, stream
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self._ask_to_close)
        self._open = True
        self._seen = 0
        self._photo: PhotoImage | None = None

    def _ask_to_close(self) -> None:
        self._open = False

    def tick(self, wait_s: float) -> bool:
        """Show the newest picture, waiting for one at most ``wait_s``; False once it was closed."""
        view = self._live.wait(self._stream, self._seen, wait_s)
        if view is not None:
            self._seen = view.sequence
            pixels = square_pixels(view.rgb, view.status.aspect)
            height, width = pixels.shape[:2]
            data = b"P6 %d %d 255 " % (width, height) + pixels.tobytes()
            self._photo = self._tk.PhotoImage(data=data, format="PPM")
            self._label.configure(image=self._photo)
        self._root.update()
        return self._open

    def close(self) -> None:
        """Close the window."""
        self._root.destroy()
