"""The live page: the newest picture in a browser, with its state, its counts and the controls.

    with serve(live, "127.0.0.1:8080") as page:
        print(page.url)

One HTML, one CSS and one JavaScript file, served by Starlette under uvicorn in a thread of its own.
It watches ``deploy.pipeline.live.Live`` and never slows the pipeline: see :mod:`.session`.
"""

from deploy.watch.page.server import Served, serve

__all__ = ["Served", "serve"]
