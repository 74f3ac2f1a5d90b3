// The drawer of settings. They are kept in this browser; the conversation is not.

const KEY = "dunlin.settings";
const DEFAULTS = { temperature: 0.8, maxTokens: null, system: "" };

function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

function keep(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Storage may be forbidden: then settings last as long as the page.
  }
}

/** Wires the drawer up and returns what requests need of it. */
export function settings(page) {
  const drawer = page.getElementById("settings");
  const temperature = page.getElementById("temperature");
  const temperatureValue = page.getElementById("temperature-value");
  const maxTokens = page.getElementById("max-tokens");
  const system = page.getElementById("system-prompt");
  let now = load();

  const display = () => {
    temperature.value = now.temperature;
    maxTokens.value = now.maxTokens ?? "";
    system.value = now.system;
    describe();
  };
  const describe = () => {
    const exact = Number(temperature.value) === 0 ? " (always the likeliest word)" : "";
    temperatureValue.textContent = Number(temperature.value).toFixed(1) + exact;
  };
  const read = () => {
    const tokens = Number.parseInt(maxTokens.value, 10);
    now = { temperature: Number(temperature.value), maxTokens: tokens > 0 ? tokens : null, system: system.value };
    describe();
    keep(now);
  };

  page.getElementById("settings-open").addEventListener("click", () => drawer.showModal());
  page.getElementById("settings-close").addEventListener("click", () => drawer.close());
  page.getElementById("settings-reset").addEventListener("click", () => {
    now = { ...DEFAULTS };
    keep(now);
    display();
  });
  // A click beside the drawer closes it.
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
  for (const field of [temperature, maxTokens, system]) field.addEventListener("input", read);
  display();

  return {
    /** The settings as fields of a request. */
    fields: () => ({ temperature: now.temperature, ...(now.maxTokens && { max_tokens: now.maxTokens }) }),
    /** The message that precedes the conversation, if any. */
    system: () => (now.system.trim() ? [{ role: "system", content: now.system }] : []),
  };
}
