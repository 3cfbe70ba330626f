"""Render HTML pages from disk in headless Chromium."""

import re
import shutil
import subprocess
from pathlib import Path

from clipit.output_files.whole_files import write_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
POLICY = re.compile("<meta http-equiv=[^>]*>")


def opened(text: str, folder: Path, hash: str = "", then: str = "", milliseconds: int = 0) -> str:
    """Render a page and return its DOM after all scripts have run.

    Args:
        text: HTML of the page.
        folder: Folder for the page and the browser's profile.
        hash: Fragment of the URL, with its "#".
        then: Additional script to run; removes the page's content security policy.
        milliseconds: Virtual time for which timers and animations run first.
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
        completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:  # Chromium sometimes hangs at start-up; retry once
        completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if completed.returncode:
        raise AssertionError(completed.stderr)
    return completed.stdout
