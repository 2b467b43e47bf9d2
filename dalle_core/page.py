"""`python -m dalle_core page`: loads a model and opens the page (`demo`), which this alone of the core knows."""

import argparse
import errno
import os
import socket
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dalle_core.errors import InputError

PUBLIC_CANDIDATES = 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DESCRIPTION = "Type a prompt in a browser, get a grid of candidates ranked by CLIP."
EPILOG = "A login is asked for when the environment sets DALLE_USER and DALLE_PASSWORD; then there is no MCP server."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="emoji",
        help="a name (emoji, dalle-mini, dalle-mega, janus-pro-1b), a folder, or a Hub id (default: %(default)s)",
    )
    parser.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (default: the model\'s own)')
    parser.add_argument("--lora", help="folder or Hub id of a LoRA for the model, as peft and the training command write it")
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    parser.add_argument("--host", default=host, help="address to listen on; 0.0.0.0 is everyone's (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best there is)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="int8 is for CPUs: faster, a little less exact (default: float32 on a CPU; bfloat16 on a GPU, else float16)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="CUDA: compile the prior's layers; the first pictures wait for it, the others come faster (no GPU has run it yet)",
    )
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="draw in N processes, each with the model, by Ray Serve (the extra “ray”): on this machine, or on the "
        "cluster that RAY_ADDRESS names; on GPUs each takes one (default: in this process)",
    )
    parser.add_argument(
        "--public",
        action=argparse.BooleanOptionalAction,
        default="SPACE_ID" in os.environ,
        help=f"for strangers: at most {PUBLIC_CANDIDATES} candidates at once, no change of model (default: on a Space only)",
    )
    parser.add_argument(
        "--proxies",
        type=int,
        default=int("SPACE_ID" in os.environ),
        metavar="N",
        help="how many trusted proxies before the server add to X-Forwarded-For, where the N-th address from the right is the "
        "visitor's (default: %(default)s; on a Space 1)",
    )
    parser.add_argument("--share", action="store_true", help="also a public link, through Gradio's servers, for 72 hours")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=False, help="open the page in a browser")


def use_utf8() -> None:
    """Prompts name files and are printed, in every language. Where the locale's encoding cannot name such files, Python
    starts again in its UTF-8 mode."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def check_address(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise InputError(f"--port {port}: a port is a number from 1 to 65535.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Elsewhere it skips the port's minutes of rest after a run; on Windows it would take a port that is in use.
        option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
        probe.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such address"
            other = "--port" if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES) else "--host"
            raise InputError(f"cannot listen on {host}, port {port}: {reason}. Choose another with {other}.") from None


def bypass_proxy(host: str) -> None:
    """Gradio asks its own page for a sign of life, through the proxy if there is one: the page's addresses need none.
    Everything else still goes through it."""
    proxies = urllib.request.getproxies()  # the environment's, or the system's on macOS and Windows
    if proxies and proxies.get("no") != "*":
        proxies["no"] = ",".join(filter(None, [proxies.get("no"), "localhost", "127.0.0.1", "::1", host]))
        for scheme, address in proxies.items():
            os.environ[f"{scheme}_proxy"] = address.replace("socks://", "socks5://")  # as desktops write it


def choose_temporary_folder(port: int) -> None:
    """Gradio keeps uploads and pictures in $GRADIO_TEMP_DIR. Without one the page gets a folder of its own, where it may
    remove what is old (`dalle_core.studio.store`)."""
    named = os.environ.get("GRADIO_TEMP_DIR")
    user = os.getuid() if hasattr(os, "getuid") else "page"  # Windows has temporary folders for each user
    folder = Path(named or Path(tempfile.gettempdir()) / f"dalle-{user}-{port}")
    try:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            if not named and hasattr(os, "getuid") and folder.lstat().st_uid != user:
                raise PermissionError
        except OSError:
            if named:
                raise
            folder = Path(tempfile.mkdtemp(prefix="dalle-"))  # somebody else has taken the name
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
    except OSError as error:
        place = f"the folder {named} of GRADIO_TEMP_DIR" if named else "the folder for temporary files"
        raise InputError(
            f"{place} cannot be used: {error.strerror or error}. Set GRADIO_TEMP_DIR to a folder that you can write to."
        ) from None


def is_own(args: argparse.Namespace, login: bool) -> bool:
    """Whether only those see the page who sit at this machine or know its password: its Train tab opens any folder."""
    return not args.public and (login or args.host in LOOPBACK and not args.share)


def check(args: argparse.Namespace) -> None:
    """Raises InputError for arguments that the page cannot be opened with."""
    if not 0 <= args.proxies <= 10:
        raise InputError(f"--proxies {args.proxies}: how many proxies there are is a number from 0 to 10.")
    if args.replicas is not None and args.replicas < 1:
        raise InputError(f"--replicas {args.replicas}: at least one process draws.")
    if args.replicas and args.compile:
        raise InputError("--compile is for the page's own process: leave it or --replicas out.")
    check_address(args.host, args.port)
    if bool(os.environ.get("DALLE_USER")) != bool(os.environ.get("DALLE_PASSWORD")):
        raise InputError("set both DALLE_USER and DALLE_PASSWORD for a login, or neither.")


def run(args: argparse.Namespace) -> None:
    """Opens the page and serves it until it is stopped.

    Raises InputError for arguments that it cannot be opened with, ModelError for a model that cannot be loaded.
    """
    use_utf8()
    check(args)
    choose_temporary_folder(args.port)
    bypass_proxy(args.host)
    user, password = os.environ.get("DALLE_USER"), os.environ.get("DALLE_PASSWORD")

    # Only now: these take seconds, and --help or a wrong argument should not.
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  before torch: it replaces parts of it
    import torch

    from dalle_core.cluster import connect

    if args.compile and (not torch.cuda.is_available() or args.device == "cpu" or os.environ.get("SPACES_ZERO_GPU")):
        raise InputError("--compile needs a CUDA GPU of one's own: leave it out.")
    models = Loader(args)
    if args.replicas:
        connect()  # on the main thread: what Ray starts ends with the thread that started it
    with ThreadPoolExecutor(1) as loader:  # PyTorch's helpers of this thread end with it: see `dalle_core.engine.Engine`
        opening = loader.submit(models.load, models.chosen)
        from demo import create_demo, launch_options, open_studio  # Gradio takes seconds too: meanwhile

        pipe = opening.result()
    change = None if args.public else models.load
    studio = open_studio(pipe, models.chosen, change, models.download, args.public, args.model if args.lora else None)
    runs = Path("runs") if is_own(args, bool(user)) else None
    create_demo(studio, together=4 * (args.replicas or 1), runs=runs).launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        inbrowser=args.browser,
        auth=(user, password) if user else None,
        **launch_options(studio, args.public, args.proxies, login=bool(user)),
    )


class Loader:
    """How the page's models are loaded: the first by all arguments of the command, another by its device and dtype."""

    def __init__(self, args: argparse.Namespace):
        import torch

        from dalle_core.lora import JOINT, name_of

        self.args, self.dtype = args, args.dtype and getattr(torch, args.dtype)
        # Its entry in the list of models; the model without the LoRA is another.
        self.chosen = f"{args.model}{JOINT}{name_of(Path(args.lora))}" if args.lora else args.model

    def load(self, source: str, tell=None):
        """The pipeline of an entry of the list, or its replicas. tell: as of `catalogue.load`."""
        if self.args.replicas is None:
            return self._load_here(source, tell)
        from dalle_core.studio.replicas import open_replicas

        return open_replicas(self.args.replicas, self._arguments(source), lambda: self._load_here(source, tell))

    def download(self, source: str, tell, freed: int) -> None:
        """As `catalogue.download`."""
        from dalle_core.catalogue import download

        found = self._arguments(source)
        download(found["source"], found["device"], found["dtype"], found["clip"], tell, freed)

    def _arguments(self, source: str) -> dict:
        model, lora = (self.args.model, self.args.lora) if source == self.chosen else (source, None)
        clip = self.args.clip if model == self.args.model else None
        return {"source": model, "device": self.args.device, "dtype": self.dtype, "clip": clip, "lora": lora}

    def _load_here(self, source: str, tell):
        from dalle_core.catalogue import load

        pipe = load(**self._arguments(source), tell=tell)
        if self.args.compile:
            pipe.prior.compile_repeated_blocks(dynamic=True)
        if self.args.public:
            pipe.max_candidates = PUBLIC_CANDIDATES
        return pipe
