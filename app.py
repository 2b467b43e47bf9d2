"""`python app.py`: loads a model and opens the page. `--help` lists what can be chosen."""

import argparse
import errno
import getpass
import os
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

PUBLIC_CANDIDATES = 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Type a prompt in a browser, get a grid of candidates ranked by CLIP.",
        epilog="A login is asked for when the environment sets DALLE_USER and DALLE_PASSWORD; then there is no MCP server.",
    )
    parser.error = lambda message: fail(f"{message}. Try --help.")  # one line, without the usage
    parser.add_argument(
        "--model", default="emoji",
        help="a name (emoji, dalle-mini, dalle-mega), a folder, or a Hub id (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (default: the model\'s own)')
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    parser.add_argument("--host", default=host, help="address to listen on; 0.0.0.0 is everyone's (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best there is)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16", "int8"],
        help="int8 is for CPUs: faster, a little less exact (default: float32 on a CPU, bfloat16 on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true",
        help="CUDA: compile the prior's layers; the first pictures wait for it, the others come faster (no GPU has run it yet)",
    )  # fmt: skip
    parser.add_argument(
        "--public", action=argparse.BooleanOptionalAction, default="SPACE_ID" in os.environ,
        help=f"for strangers: at most {PUBLIC_CANDIDATES} candidates at once, no change of model (default: on a Space only)",
    )  # fmt: skip
    parser.add_argument(
        "--proxies", type=int, default=int("SPACE_ID" in os.environ), metavar="N",
        help="how many trusted proxies before the server add to X-Forwarded-For, where the N-th address from the right is the "
        "visitor's (default: %(default)s; on a Space 1)",
    )  # fmt: skip
    parser.add_argument("--share", action="store_true", help="also a public link, through Gradio's servers, for 72 hours")
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=False, help="open the page in a browser"
    )
    return parser.parse_args()


def fail(message: str) -> None:
    print(f"app.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    args = arguments()
    if not 0 < args.port < 65536:
        fail(f"--port {args.port}: a port is a number from 1 to 65535.")
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such address"
            other = "--port" if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES) else "--host"
            fail(f"cannot listen on {args.host}, port {args.port}: {reason}. Choose another with {other}.")
    if not 0 <= args.proxies <= 10:
        fail(f"--proxies {args.proxies}: how many proxies there are is a number from 0 to 10.")
    user, password = os.environ.get("DALLE_USER"), os.environ.get("DALLE_PASSWORD")
    if bool(user) != bool(password):
        fail("set both DALLE_USER and DALLE_PASSWORD for a login, or neither.")

    # A folder of this server's own, where it may remove what is old: see `dalle_core.studio.store`.
    own = os.path.join(tempfile.gettempdir(), f"dalle-{getpass.getuser()}-{args.port}")
    os.environ.setdefault("GRADIO_TEMP_DIR", own)

    # Only now: these take seconds, and --help or a wrong argument should not.
    if os.environ.get("SPACES_ZERO_GPU"):
        import spaces  # noqa: F401  before torch: it replaces parts of it
    import torch

    import dalle_core

    if args.compile and (not torch.cuda.is_available() or args.device == "cpu" or os.environ.get("SPACES_ZERO_GPU")):
        fail("--compile needs a CUDA GPU of one's own: leave it out.")
    dtype = args.dtype and getattr(torch, args.dtype)

    def load(source, tell=None):
        clip = args.clip if source == args.model else None
        pipe = dalle_core.load(source, args.device, dtype, clip, tell)
        if args.compile:
            pipe.prior.compile_repeated_blocks(fullgraph=True)
        if args.public:
            pipe.max_candidates = PUBLIC_CANDIDATES
        return pipe

    def download(source, tell, freed):
        dalle_core.download(source, args.device, dtype, args.clip if source == args.model else None, tell, freed)

    try:
        with ThreadPoolExecutor(1) as loader:  # PyTorch's helpers of this thread end with it: see `dalle_core.engine.Engine`
            loading = loader.submit(load, args.model)
            from demo import Models, create_demo, launch_options  # Gradio takes seconds too: meanwhile

            pipe = loading.result()
        models = Models(pipe, args.model, None if args.public else load, download)
    except dalle_core.ModelError as error:
        fail(str(error))
    create_demo(models).launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        inbrowser=args.browser,
        auth=(user, password) if user else None,
        **launch_options(args.public, args.proxies, login=bool(user)),
    )


if __name__ == "__main__":
    main()
