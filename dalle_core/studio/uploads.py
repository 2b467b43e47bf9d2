"""The gate for files that people hand in: a file below certain folders, or a refusal that tells nothing about the server."""

import os
import stat
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dalle_core.errors import InputError

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # decoders in wide use; a picture is never handed to any other
NOTHING = "Choose a picture first."
REFUSED = "This file cannot be read here. Upload it again."  # one sentence for all: whether a file exists is nobody's business


def checked(path: str | Path | None, *folders: str | Path) -> Path:
    """The real path of a regular file below one of `folders`, links and ".." resolved. Raises InputError, in the same words
    for a file that is missing and for one that is elsewhere."""
    if not path:
        raise InputError(NOTHING)
    for folder in folders:
        try:
            real, base = os.path.realpath(path, strict=True), os.path.realpath(folder, strict=True)
            if os.path.commonpath([real, base]) == base and stat.S_ISREG(os.stat(real).st_mode):
                return Path(real)
        except (OSError, ValueError, TypeError):
            pass
    raise InputError(REFUSED)


def opened(path: str | Path | None, *folders: str | Path) -> Image.Image:
    """The picture in a file below one of `folders`. Raises InputError as `checked` and `open_picture`."""
    return open_picture(checked(path, *folders))


def open_picture(path: str | Path | None) -> Image.Image:
    """The picture in a file that may be read, its first frame if it moves. Raises InputError: no file, no picture, too
    large, damaged."""
    if not path:
        raise InputError(NOTHING)
    name = Path(path).name[:60]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, from the header alone
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return image.copy()
    except Image.DecompressionBombError:
        most = MAX_PIXELS // 10**6
        raise InputError(f"{name} is too large: up to {most} million pixels are read. Make it smaller first.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture this page can read: use PNG, JPEG, WebP, GIF or BMP.") from None
    except FileNotFoundError:  # removed meanwhile
        raise InputError(REFUSED) from None
    except Exception:  # decoders raise many kinds; what they say names positions in the file, or the system's error
        raise InputError(f"{name} is damaged and cannot be read. Save it anew, or use another.") from None
