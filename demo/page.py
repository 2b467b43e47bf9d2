"""gr.Blocks for strangers: whatever they send, they get a result or a sentence, and no file but theirs is opened."""

import logging
import re

import gradio as gr

from dalle_core import InputError, ModelError
from dalle_core.studio.store import Store
from dalle_core.studio.uploads import REFUSED, checked

MISUSED = "This is not what is asked for here. The page says under “Use via API” what it takes."
FAILED = "Something went wrong here. The server's log says what; try again."
LINK = "Pictures are not fetched from other addresses: upload it, or send it as a data: URL."
# An argument's name -> what the page calls it.
WORDS = {
    "num_candidates": "Candidates",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "guidance_scale": "Guidance scale",
    "preview_every": "Preview every",
}
log = logging.getLogger(__name__)


class Page(gr.Blocks):
    """`store` holds the files that are made for visitors, below Gradio's own folder, and bounds what they upload."""

    def __init__(self, store: Store, **options):
        super().__init__(**options)
        self.store = store

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.store.spare(path for block in self.blocks.values() for path in block.keep_in_cache)  # icons
        for block in self.blocks.values():
            if getattr(block, "choices", None):
                name_choices(block)

    @property
    def mcp_server_obj(self):
        return self._mcp_server

    @mcp_server_obj.setter
    def mcp_server_obj(self, server):
        """Gradio's MCP server is a client of the page, and a client uploads each file that its arguments name: here from the
        server's own disk, whichever a stranger chose. So no argument may name one before it becomes the client's."""
        self._mcp_server = server
        if server is None:
            return
        convert = server.convert_strings_to_filedata

        def checked_first(arguments, places):
            refuse_files(list(arguments.values()))
            return convert(arguments, places)

        server.convert_strings_to_filedata = checked_first

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        try:
            # An endpoint for programs fetches an address itself, with care (`dalle_core.studio.fetch`); a component would not.
            refuse_foreign_files(inputs, self.GRADIO_CACHE, links=block_fn.api_visibility == "public")
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except InputError as error:
            raise sentence(str(error)) from None
        except gr.Error as error:  # a component's; Gradio's own print what they say
            raise sentence(MISUSED) if error.print_exception else error from None
        except Exception:
            log.info("a request was refused", exc_info=True)
            raise sentence(MISUSED) from None

    async def process_api(self, block_fn, *args, **options):
        try:
            return await super().process_api(block_fn, *args, **options)
        except gr.Error:
            raise
        except (InputError, ModelError) as error:
            for_program = getattr(block_fn, "api_visibility", "") == "public"
            raise sentence(str(error) if for_program else in_words(str(error))) from None
        except Exception:
            log.exception("a handler failed")
            raise sentence(FAILED) from None


def sentence(text: str) -> gr.Error:
    return gr.Error(text, duration=10, print_exception=False)


def in_words(text: str) -> str:
    """A sentence with the page's labels in the place of arguments' names; what stands in quotation marks is a visitor's."""
    return re.sub(rf"(?<!['\w])({'|'.join(WORDS)})(?!['\w])", lambda found: WORDS[found[1]], text)


def name_choices(component: gr.Radio | gr.Dropdown) -> None:
    """Makes it say what may be chosen, to a program that sends something else; Gradio's own words are Python's."""
    check = component.preprocess

    def preprocess(value):
        try:
            return check(value)
        except (gr.Error, TypeError):
            choices = ", ".join(str(choice) for _, choice in component.choices)
            raise sentence(f"{component.label} is {str(value)[:40]!r}; it must be one of: {choices}.") from None

    component.preprocess = preprocess


def refuse_files(value) -> None:
    """Raises InputError where any part of what was sent is a file as Gradio writes one."""
    if isinstance(value, dict):
        if "path" in value:
            raise InputError(REFUSED)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            refuse_files(part)


def refuse_foreign_files(value, folder: str, links: bool = False) -> None:
    """Raises InputError where any part of what was sent names a file that is not below `folder`, whatever else it says of
    it: Gradio looks at some such claims only, and would fetch what has an address."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.lower().startswith(("http:", "https:")):
            if not links:
                raise InputError(LINK)
        elif path:
            checked(path, folder)
        value = value.values()
    if not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        for part in value:
            refuse_foreign_files(part, folder, links)
