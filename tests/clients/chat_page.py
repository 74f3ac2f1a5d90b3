"""Uses the chat page in headless Chromium as a person does. Prints a line per check; exit code 1 if one fails.

Usage: chat_page.py http://127.0.0.1:PORT CHROMIUM PICTURE.png
"""

import sys

from playwright.sync_api import sync_playwright

TELEMETRY = "edge-cam-07 temp=91C fan=0rpm load=0.42 disk=63% mem=48% uptime=12d"
MILLISECONDS_MAX = 120_000


def ask(page, text):
    """Types `text`, sends it and returns the answer once all of it is there."""
    answers = page.locator("article[data-role=assistant]")
    before = answers.count()
    page.locator("#prompt").fill(text)
    page.locator("#send").click()
    answer = answers.nth(before)
    answer.wait_for(timeout=MILLISECONDS_MAX)
    page.wait_for_function(
        "n => ['done', 'stopped', 'error'].includes("
        "document.querySelectorAll('article[data-role=assistant]')[n].dataset.state)",
        arg=before,
        timeout=MILLISECONDS_MAX,
    )
    return answer


def main():
    url, chromium, picture = sys.argv[1:]
    problems = []
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root, as whom CI often runs; it loads nothing but our own page.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith(url) or problems.append(f"asks for {request.url}"))
        page.goto(url, timeout=MILLISECONDS_MAX)
        page.wait_for_selector("body[data-server=ok]", timeout=MILLISECONDS_MAX)
        print("ok page_loads", flush=True)

        answer = ask(page, TELEMETRY)
        page.screenshot(path=picture)
        state, text = answer.get_attribute("data-state"), answer.locator(".text").inner_text()
        assert state == "done", f"the answer ended as {state!r}: {answer.inner_text()!r}"
        assert "edge-cam-07" in text, text
        print("ok first_answer", flush=True)

        answer = ask(page, "what is dunlin?")
        assert answer.get_attribute("data-state") == "done", answer.inner_text()
        assert page.locator("article[data-role=user]").count() == 2
        print("ok second_turn", flush=True)
        browser.close()
    assert not problems, problems
    print("ok quiet_console", flush=True)


if __name__ == "__main__":
    main()
