// How often CLIP agreed with this browser's visitor.
window.dalleVotes = (() => {
  const KEY = "dalle.votes", whole = (number) => (Number.isInteger(number) && number >= 0 ? number : 0);
  let unsaved = null;  // the tally of this visit, where the storage is full or forbidden
  const read = () => {
    if (unsaved) return unsaved;
    try {
      const { agree, total } = JSON.parse(localStorage.getItem(KEY));
      return { agree: Math.min(whole(agree), whole(total)), total: whole(total) };
    } catch { return { agree: 0, total: 0 }; }
  };
  const show = (votes = read()) => {
    const place = document.querySelector("#vote-tally"), { agree, total } = votes;
    if (place && total) place.textContent = `CLIP agreed with you in ${agree} of ${total} votes (${Math.round((100 * agree) / total)} %).`;
  };
  const count = (text) => {
    if (!/^(agree|differ) /.test(text)) return;
    const votes = read();
    votes.total += 1;
    if (text.startsWith("agree")) votes.agree += 1;
    try { localStorage.setItem(KEY, JSON.stringify(votes)); } catch { unsaved = votes; }
    show(votes);
  };
  return { show, count };
})();
