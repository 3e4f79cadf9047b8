"""Command ``python deploy/gateway``: receive studies by C-STORE, run the app on each, send the results to a PACS."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append(str(Path(__file__).resolve().parents[1] / "app"))

import pydicom  # noqa: E402
from models_folder import find_bundle  # noqa: E402

from gateway.app_process import APP, App  # noqa: E402
from gateway.receiver import Address, Receiver  # noqa: E402
from gateway.sender import Destination  # noqa: E402
from gateway.studies import Limits, Studies  # noqa: E402
from gateway.work_folder import WorkFolderError, open_work_folder  # noqa: E402
from gateway.worker import Worker  # noqa: E402

logger = logging.getLogger("gateway")


def main(arguments: list[str]) -> int:
    """Run the gateway until SIGTERM or SIGINT.

    Args:
        arguments: arguments of the command; those after ``--`` are for the app.

    Returns:
        Exit status: 0, or 1 if it cannot start.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parse(arguments[:end])
    configure_logs()
    os.umask(0o077)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        bundle = find_bundle(options.models)
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        work_folder = options.work_dir.resolve()
        marker = open_work_folder(work_folder)
        limits = Limits(
            options.max_pending,
            options.min_free_gb * 1e9,
            options.keep_hours * 3600,
            options.quiet_seconds,
            options.retry_seconds,
        )
        studies = Studies(work_folder, limits)
        address = Address(options.host, options.port, options.ae_title, options.allow)
        receiver = Receiver(address, studies, metadata.get("authors", ""))
        receiver.start()
    except (ValueError, WorkFolderError) as error:
        logger.error(error)
        return 1
    except OSError as error:
        logger.error(f"{options.host}:{options.port} cannot be listened at ({error.strerror}); give another address.")
        return 1
    app = App(options.models.resolve(), arguments[end + 1 :], options.time_limit, options.app.resolve())
    logger.info(f"{options.ae_title} listens at {options.host}:{options.port}")
    try:
        Worker(studies, app, options.send_to, options.ae_title).work(stop)
    finally:
        receiver.stop()
        marker.close()
    logger.info("ended")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the arguments before ``--``."""
    parser = argparse.ArgumentParser(
        prog="python deploy/gateway",
        description=(__doc__ or "").partition(": ")[2],
        epilog="Arguments after -- are given to the app, for example: -- --series all",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--port", type=port, default=11112, help="TCP port to listen at (11112)")
    add("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    add("--ae_title", type=title, default="DPMM", help="title of the gateway (DPMM)")
    add("--allow", type=titles, default=[], metavar="AET,AET", help="titles that may send (any)")
    add("--models", type=Path, required=True, help="folder with the exported bundle, as -m of the app")
    add("--send_to", type=destination, required=True, metavar="HOST:PORT:AET", help="where results go")
    add("--work_dir", type=Path, required=True, help="folder of the received and of the made files")
    add("--quiet_seconds", type=positive, default=30, help="time without a new image that ends a study (30)")
    add("--time_limit", type=positive, default=3600, metavar="SECONDS", help="longest run of the app (3600)")
    add("--retry_seconds", type=positive, default=30, help="time before results are sent again; doubles (30)")
    add("--keep_hours", type=not_negative, default=24, help="how long a study is kept after its end (24)")
    add("--max_pending", type=int, default=100, help="studies that may wait (100)")
    add("--min_free_gb", type=not_negative, default=2, help="disk space that stays free, GB (2)")
    add("--app", type=Path, default=APP, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def port(text: str) -> int:
    """Read a port.

    Raises:
        ValueError: it is none.
    """
    if not 0 < int(text) < 65536:
        raise ValueError("no port")
    return int(text)


def title(text: str) -> str:
    """Read a title of an application entity.

    Raises:
        ValueError: it is none.
    """
    if not 0 < len(text.strip()) <= 16 or not text.isascii() or not text.isprintable() or "\\" in text:
        raise ValueError("no title")
    return text.strip()


def titles(text: str) -> list[str]:
    """Read titles with commas between them."""
    return [title(part) for part in text.split(",")]


def destination(text: str) -> Destination:
    """Read ``HOST:PORT:AET``."""
    parsed = Destination.parse(text)
    title(parsed.ae_title)
    return parsed


def positive(text: str) -> float:
    """Read a number above 0.

    Raises:
        ValueError: it is none.
    """
    if not 0 < float(text) < float("inf"):
        raise ValueError("not positive")
    return float(text)


def not_negative(text: str) -> float:
    """Read a number of at least 0.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= float(text) < float("inf"):
        raise ValueError("negative")
    return float(text)


def configure_logs() -> None:
    """Log the gateway's own messages alone, as those of pydicom and pynetdicom may quote images."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(asctime)s] [%(levelname)s] (%(name)s) - %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
