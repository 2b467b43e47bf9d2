// Painting cells of the Complete tab's picture with a mouse, a pen or a finger. What was painted is shown as a line until the
// server has turned the cells under it.
window.dallePaint = (() => {
  let stroke = [], image = null, line = null;
  const at = (event) => {
    const box = image.getBoundingClientRect();
    const part = (value) => Math.min(1, Math.max(0, value));
    return [part((event.clientX - box.left) / box.width), part((event.clientY - box.top) / box.height)];
  };
  const show = () => {
    const box = image.getBoundingClientRect();
    Object.assign(line.style, { left: `${box.left + scrollX}px`, top: `${box.top + scrollY}px`, width: `${box.width}px`,
      height: `${box.height}px` });
    line.firstChild.setAttribute("points", stroke.map(([x, y]) => `${x * 100},${y * 100}`).join(" "));
  };
  document.addEventListener("pointerdown", (event) => {
    const found = event.target.closest?.("#kept-view img");
    if (!found || event.button) return;
    event.preventDefault();  // no dragging of the picture itself
    [image, stroke] = [found, []];
    line?.remove();
    line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    line.id = "stroke";
    line.setAttribute("viewBox", "0 0 100 100");
    line.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    document.body.append(line);
    stroke.push(at(event), at(event));
    show();
  });
  document.addEventListener("pointermove", (event) => {
    if (!image || stroke.length > 4000) return;
    stroke.push(at(event));
    show();
  });
  const end = (event) => {
    if (!image) return;
    image = null;
    if (event.type === "pointerup") document.querySelector("#painted")?.click();
    setTimeout(() => line?.remove(), 600);
  };
  document.addEventListener("pointerup", end);
  document.addEventListener("pointercancel", end);
  document.addEventListener("dragstart", (event) => { if (event.target.closest?.("#kept-view")) event.preventDefault(); });
  return { stroke: () => JSON.stringify(stroke) };
})();
