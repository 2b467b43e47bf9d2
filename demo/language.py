"""The page in Chinese: `chinese.json` has its English texts with their translations, `language.js` shows them.

In a key `{}` stands for any text, and in its value for the same, in the same order unless numbered (`{2}`). What visitors
wrote stays as it is: inside `translate="no"`, or the class `notranslate` where Gradio makes the element.
"""

import json

from demo import static

CHINESE = json.loads(static.read("chinese.json"))
WORDS = json.dumps(CHINESE, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")  # ends no script
HEAD = f"<script>window.dalleChinese = {WORDS};\n{static.read('language.js')}</script>"
