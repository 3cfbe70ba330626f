"""Pages in a real headless browser (Debian's chromium), opened from disk."""

import re
import shutil
import subprocess
from pathlib import Path

from clipit.output_files.whole_files import write_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
POLICY = re.compile("<meta http-equiv=[^>]*>")


def opened(text: str, folder: Path, hash: str = "", then: str = "", milliseconds: int = 0) -> str:
    """The page's elements after its script ran; `then` is more script, for which the page's own policy is taken out.

    With `milliseconds`, timers and animations first run for that long, on a clock that does not wait.
    """
    if then:
        text = POLICY.sub("", text).replace("</body>", f"<script>{then}</script></body>")
    path = folder / "page.html"
    write_text(path, text)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    if milliseconds:
        command.append(f"--virtual-time-budget={milliseconds}")
    command += [f"--user-data-dir={folder / 'profile'}", f"{path.as_uri()}{hash}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:  # chromium itself sometimes hangs at its start; a page that hangs does so twice
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout
