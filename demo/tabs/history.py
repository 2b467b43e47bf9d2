"""The history: what a person drew, as settings and tokens, in their own browser (`static/history.js`, an entry as of
`dalle_core.studio.pool.to_entry` for each localStorage key). Pictures that were drawn lie on the server for a day at most."""

from demo import static

HEAD = f"<style>{static.read('history.css')}</style><script>{static.read('history.js')}</script>"
FOLD = (
    '<details id="history"><summary>History (<span id="history-count">0</span>)</summary>'
    '<div id="history-body"></div></details>'
)
