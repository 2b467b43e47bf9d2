"""Files for visitors, made when they are asked for."""

import gradio as gr

from demo.public import visitor


def download(button: gr.Button, make, inputs: list) -> None:
    """A click on `button` downloads the file at the path that `make(visitor, *values of inputs)` returns."""

    def prepare(request: gr.Request, *values):
        return str(make(visitor(request), *values))

    # A button that is hidden, but there: its value comes to the browser as a link.
    file = gr.DownloadButton(elem_classes="offstage")
    button.click(prepare, inputs, file, api_visibility="private", show_progress="hidden", concurrency_limit=4).success(
        None,
        file,
        None,
        api_visibility="private",
        js="""(file) => {
          const link = Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name ?? "" });
          document.body.append(link);
          link.click();
          link.remove();
        }""",
    )
