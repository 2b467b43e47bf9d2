// The history of this browser: one localStorage key an entry, so that two tabs never overwrite each other. Text of an entry
// goes to the page through textContent only.
window.dalleHistory = (() => {
  const PREFIX = "dalle.history.", MOST = 500;
  let model = "", revision = "", words = "", starred = false, asked = "";

  const check = (entry) => {
    const fits = entry && typeof entry === "object" && /^[0-9a-zA-Z]{1,32}$/.test(entry.id) &&
      ["id", "model", "prompt", "negative_prompt"].every((key) => typeof entry[key] === "string" && entry[key].length <= 20000) &&
      entry.settings && typeof entry.settings === "object" && !Array.isArray(entry.settings) &&
      Array.isArray(entry.candidates) && entry.candidates.length >= 1 && entry.candidates.length <= 256 &&
      entry.candidates.every((row) => row && typeof row.seed === "string" && /^[0-9]{1,19}$/.test(row.seed) &&
        Number.isInteger(row.index) && row.index >= 0 && (row.score === null || Number.isFinite(row.score)) &&
        typeof row.tokens === "string" && /^[A-Za-z0-9+/]+=*$/.test(row.tokens) && row.tokens.length <= 16384);
    if (!fits) return null;
    return { version: 1, id: entry.id, model: entry.model,
      revision: /^[0-9a-f]{0,64}$/.test(entry.revision) ? entry.revision : "", prompt: entry.prompt, negative_prompt: entry.negative_prompt,
      settings: entry.settings, varied: entry.varied === true, favourite: entry.favourite === true,
      time: Number.isFinite(entry.time) ? entry.time : Date.now(),
      candidates: entry.candidates.map(({ seed, index, score, tokens }) => ({ seed, index, score, tokens })) };
  };
  const read = (key) => {
    try { return check(JSON.parse(localStorage.getItem(key))); } catch { return null; }
  };
  const entries = () => {
    let keys = [];
    try { keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)); } catch { }  // storage may be forbidden
    return keys.map(read).filter(Boolean).sort((a, b) => b.time - a.time);
  };
  const line = Object.assign(document.createElement("button"), { id: "history-said", type: "button", hidden: true });
  line.setAttribute("role", "status");
  line.addEventListener("click", () => { line.hidden = true; });
  let hiding = 0;
  // At the window's lower edge: whoever draws does not look at the history, which may be closed.
  const say = (text) => {
    if (!line.isConnected) document.body.append(line);
    clearTimeout(hiding);
    line.textContent = text;
    line.hidden = false;
    hiding = setTimeout(() => { line.hidden = true; }, 20000);
  };
  const isFull = (error) => error.name === "QuotaExceededError" || error.name === "NS_ERROR_DOM_QUOTA_REACHED";

  // Writes an entry; the oldest ones that are no favourites make room. Returns whether it is kept.
  const write = (entry) => {
    const others = entries().filter((other) => other.id !== entry.id), old = others.filter((other) => !other.favourite);
    const gone = [];  // [key, text] of those that made room; put back when it was in vain
    const makeRoom = () => {
      const key = PREFIX + old.pop().id;
      gone.push([key, localStorage.getItem(key)]);
      localStorage.removeItem(key);
    };
    while (others.length - gone.length >= MOST && old.length) makeRoom();
    for (;;) {
      try {
        localStorage.setItem(PREFIX + entry.id, JSON.stringify(entry));
        if (gone.length) say(`The history was full: the ${gone.length} oldest made room. Export it, or mark favourites, to keep them.`);
        return true;
      } catch (error) {
        if (!isFull(error)) { say("This browser does not let the page keep a history: download what you want to keep."); return false; }
        if (old.length) { makeRoom(); continue; }
        for (const [key, text] of gone.reverse()) try { localStorage.setItem(key, text); } catch { }
        if (others.length > old.length + gone.length) say("The history is full, so this was not kept: export it, and delete some favourites.");
        else say("Other pages of this address fill this browser's storage, so the history did not keep this: download what you want to keep.");
        return false;
      }
    }
  };
  const save = (text) => {
    let entry = null;
    try { entry = check(JSON.parse(text)); } catch { }
    if (!entry) return;
    entry.favourite = read(PREFIX + entry.id)?.favourite === true;
    entry.time = Date.now();
    write(entry);
    render();
  };

  const make = (tag, text, act, more = {}) => {
    const element = Object.assign(document.createElement(tag), { textContent: text, ...more });
    if (act) element.addEventListener("click", act);
    return element;
  };
  const send = (text, button) => { asked = text; document.querySelector(button)?.click(); };
  const row = (entry) => {
    const line = document.createElement("li"), what = make("div", "", null, { className: "what" });
    const scores = entry.candidates.map((one) => one.score).filter((score) => score !== null);
    const best = scores.length ? ` · best ${Math.max(...scores).toFixed(3)}` : "";
    const here = entry.model === model && entry.revision === revision;
    const why = entry.model === model ? " · another version of the model: only the prompt can be used" :
      " · another model: choose it first to open this";
    what.append(make("b", entry.prompt, null, { title: entry.prompt, translate: false }), make("small",
      `${new Date(entry.time).toLocaleString()} · ${entry.model} · ${entry.candidates.length} candidates${best}` +
      (here ? "" : why)));
    const erase = () => {
      if (!confirm(dalleLanguage.say(`Delete “${entry.prompt.slice(0, 60)}” from the history?`))) return;
      localStorage.removeItem(PREFIX + entry.id);
      render();
    };
    const star = () => { write({ ...entry, favourite: !entry.favourite }); render(); };
    line.append(what,
      make("button", "Open", () => send(JSON.stringify(entry), "#history-open"), { className: "open", disabled: !here }),
      make("button", "Use prompt", () => send(entry.prompt, "#history-prompt")),
      make("button", entry.favourite ? "★" : "☆", star, { className: "star", ariaLabel: "Favourite", ariaPressed: entry.favourite }),
      make("button", "Delete", erase, { className: "delete" }));
    return line;
  };
  const list = () => {
    const all = entries(), place = document.querySelector("#history-list"), count = document.querySelector("#history-count");
    if (!place) return;
    const shown = all.filter((entry) => (!starred || entry.favourite) && entry.prompt.toLowerCase().includes(words));
    count.textContent = all.length;
    place.replaceChildren(...shown.map(row));
    document.querySelectorAll("#history .of-entries").forEach((tool) => { tool.disabled = !all.length; });
    if (!shown.length) place.append(make("li", all.length ? "Nothing matches." : "What you draw is listed here, in this browser only."));
  };
  const download = () => {
    const url = URL.createObjectURL(new Blob([JSON.stringify(entries())], { type: "application/json" }));
    make("a", "", null, { href: url, download: "dalle-history.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const take = async (file) => {
    let found = null;
    try { found = JSON.parse(await file.text()); } catch { }
    if (!Array.isArray(found)) return say("That file is not a history that was exported here.");
    const good = found.map(check);
    if (!found.length || good.includes(null)) return say("That history is damaged or changed by hand: nothing was imported.");
    const kept = good.filter(write).length;
    render();
    if (kept === good.length) say(`${kept} entries imported.`);  // else `write` said why not
  };
  const render = () => {
    const place = document.querySelector("#history-body");
    if (place && !place.firstChild) {
      const tools = make("div", "", null, { className: "tools" });
      const search = make("input", "", null, { type: "search", placeholder: "Search the prompts", ariaLabel: "Search the history", className: "of-entries" });
      search.addEventListener("input", () => { words = search.value.toLowerCase(); list(); });
      const only = make("button", "Favourites only", () => { starred = !starred; only.ariaPressed = starred; list(); }, { className: "of-entries" });
      const file = make("input", "", null, { type: "file", accept: ".json", hidden: true, id: "history-import" });
      file.addEventListener("change", async () => { if (file.files[0]) await take(file.files[0]); file.value = ""; });
      const clear = () => {
        const all = entries();
        if (!confirm(dalleLanguage.say(`Delete all ${all.length} entries of the history? This cannot be undone.`))) return;
        all.forEach((entry) => localStorage.removeItem(PREFIX + entry.id));
        render();
      };
      tools.append(search, only, make("button", "Export", download, { id: "history-export", className: "of-entries" }),
        make("button", "Import", () => file.click()), file, make("button", "Delete all", clear, { id: "history-clear", className: "of-entries" }));
      place.append(tools, make("ul", "", null, { id: "history-list" }));
    }
    list();
  };
  window.addEventListener("storage", render);  // another tab wrote

  // A picture dropped anywhere that takes none itself is opened for its recipe.
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (event.defaultPrevented || !event.dataTransfer?.files.length) return;
    event.preventDefault();
    const input = document.querySelector("#open-row input[type=file]");
    if (!input) return;
    const one = new DataTransfer();
    one.items.add(event.dataTransfer.files[0]);
    input.files = one.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  const copyLink = async () => {
    const link = document.querySelector("#permalink")?.href, place = document.querySelector("#copied");
    if (!link) { place.textContent = "A variation has no link: its picture carries the recipe."; return; }
    try {
      await navigator.clipboard.writeText(link);
      place.textContent = "Link copied.";
    } catch {  // not allowed, or no secure page
      place.textContent = "Copy it from here: " + link;
    }
  };
  return { save, copyLink, asked: () => asked, use: (loaded) => { [model, revision] = JSON.parse(loaded); render(); } };
})();
