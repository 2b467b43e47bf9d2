// A picture of this page can be dragged into any place that takes pictures; a tab opens while something is held over it.
(() => {
  const PLACES = "#complete-picture, #recognise-upload, #tokens-upload", WAIT = 400;  // ms
  let over = null, opening = 0;
  const stop = () => { clearTimeout(opening); over = null; };
  document.addEventListener("dragenter", (event) => {
    const tab = event.target.closest?.("#tabs [role=tab], #tabs .overflow-menu button") ?? null;
    if (tab === over) return;
    stop();
    over = tab;
    if (tab) opening = setTimeout(() => tab.click(), WAIT);
  });
  document.addEventListener("dragend", stop);

  // A place that has a picture takes no other until it is emptied.
  const emptied = async (place) => {
    for (let tries = 0; tries < 100; tries++) {
      const input = place.querySelector("input[type=file]");
      if (input) return input;
      if (!tries) place.querySelector(".icon-button-wrapper button:last-of-type")?.click();
      await new Promise((done) => setTimeout(done, 50));
    }
    return null;
  };
  const take = async (place, address) => {
    const picture = await (await fetch(address)).blob(), files = new DataTransfer();
    const name = address.startsWith("data:") ? "preview.jpg" : decodeURIComponent(address.split("/").pop());
    files.items.add(new File([picture], name, { type: picture.type }));
    const input = await emptied(place);
    if (!input) return;
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  // Before Gradio's own, which takes files only: some browsers add one of a dragged picture, others do not.
  document.addEventListener("drop", (event) => {
    stop();
    const place = event.target.closest?.(PLACES), address = event.dataTransfer?.getData("text/uri-list").split("\n")[0].trim();
    if (!place || !address || !(address.startsWith("data:image/") || address.startsWith(`${location.origin}/`))) return;
    event.preventDefault();
    event.stopPropagation();
    take(place, address);
  }, true);
})();
