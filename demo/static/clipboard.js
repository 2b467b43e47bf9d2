// Copying where the browser has no clipboard for pages: it has one on https and for this machine's own pages only.
if (!navigator.clipboard) {
  const writeText = async (text) => {
    const focused = document.activeElement;
    const field = Object.assign(document.createElement("textarea"), { value: text, readOnly: true });
    field.style.cssText = "position: fixed; top: 0; opacity: 0";
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    if (!copied) throw new Error("The browser did not copy.");
  };
  Object.defineProperty(navigator, "clipboard", { value: { writeText } });
}
