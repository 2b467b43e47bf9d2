// The page in Chinese or English. It is written in English; here its texts are replaced as they appear, before they are
// painted, and each one's English is remembered, so that the language can be switched at any time and nothing is lost.
window.dalleLanguage = (() => {
  const KEY = "dalle.language", ATTRIBUTES = ["placeholder", "aria-label", "title"];
  const SKIP = "head, script, style, [translate=no], .notranslate";  // what visitors wrote, and code
  const exact = new Map(), back = new Map(), patterns = [];
  for (const [english, chinese] of Object.entries(window.dalleChinese)) {
    if (english.includes("{}")) {
      const parts = english.split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
      patterns.push([new RegExp(`^${parts.join("([^]+?)")}$`), chinese, parts.join("").length]);
    } else {
      exact.set(english, chinese);
      if (/\p{Script=Han}/u.test(chinese) && !back.has(chinese)) back.set(chinese, english);  // for Gradio's texts, see `put`
    }
  }
  patterns.sort((a, b) => b[2] - a[2]);  // those that say the most first

  let language = /^zh\b/i.test(navigator.languages?.[0] ?? navigator.language) ? "zh" : "en";
  try { language = localStorage.getItem(KEY) ?? language; } catch { }  // storage may be forbidden

  const translated = (english) => {
    if (exact.has(english)) return exact.get(english);
    if (english.length > 1000 || !/[a-z]/i.test(english)) return english;
    for (const [pattern, chinese] of patterns) {
      const found = pattern.exec(english);
      if (!found) continue;
      let next = 0;  // a filling may be a word of the page, as in "number input for Candidates"; what visitors wrote is quoted
      return chinese.replace(/\{(\d?)\}/g, (_, number) => exact.get(found[number || ++next]) ?? found[number || next]);
    }
    return english;
  };
  const say = (english) => {
    const words = english.trim();
    return language === "zh" && words ? english.replace(words, () => translated(words)) : english;
  };

  const known = new WeakMap();  // node -> what is translated of it -> { english, shown }
  const put = (node, name, now, set) => {
    if (!now.trim()) return;
    const all = known.get(node) ?? {}, before = all[name];
    // Gradio writes its own texts in the browser's language: Chinese ones have their English by way of the dictionary.
    const english = before?.shown === now ? before.english : back.get(now.trim()) ?? now;
    const shown = say(english);
    known.set(node, { ...all, [name]: { english, shown } });
    if (shown !== now) set(shown);
  };
  const visit = (root) => {
    if (!root.isConnected || (root.nodeType === 1 ? root : root.parentElement)?.closest(SKIP)) return;
    const { FILTER_ACCEPT, FILTER_REJECT } = NodeFilter;
    const accept = (node) => (node.nodeType === 1 && node.matches(SKIP) ? FILTER_REJECT : FILTER_ACCEPT);
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT, accept);
    for (let node = root; node; node = walker.nextNode()) {
      for (const name of node.nodeType === 1 ? ATTRIBUTES : [])
        if (node.hasAttribute(name)) put(node, name, node.getAttribute(name), (text) => node.setAttribute(name, text));
      if (node.nodeType !== 3 || node.parentElement.tagName === "TEXTAREA") continue;
      put(node, "", node.data, (text) => { node.data = text; });
    }
  };
  const update = (records) => {
    for (const { type, target, addedNodes } of records) (type === "childList" ? addedNodes : [target]).forEach(visit);
    // What a dropdown shows is the value of a box that nobody can type in.
    for (const box of document.querySelectorAll("input[readonly]"))
      if (!box.closest(SKIP)) put(box, "value", box.value, (text) => { box.value = text; });
    observer.takeRecords();  // what was written here
  };
  const observer = new MutationObserver(update), all = document.documentElement;
  observer.observe(all, { childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ATTRIBUTES });
  const use = () => {
    all.lang = language === "zh" ? "zh-CN" : "en";
    update([{ target: all }]);
  };
  use();
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#language")) return;
    language = language === "zh" ? "en" : "zh";
    try { localStorage.setItem(KEY, language); } catch { }  // for this visit only
    use();
  });
  return { say };
})();
