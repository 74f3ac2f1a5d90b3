// The server's API as this page uses it.

/** An error that the server, or the way to it, reported. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string|null, retryAfter?: number}} details status 0: the server was not reached
   */
  constructor(message, { status = 0, code = null, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const GONE = "The server cannot be reached. It may have been stopped, or the network is down.";

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(GONE);
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? `The server answered ${response.status}.`;
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  return new ApiError(message, { status: response.status, code: body.error?.code ?? null, retryAfter });
}

/** "ok", "loading" with the part done, "draining", "failed" with the server's words, or "gone". */
export async function health() {
  try {
    const response = await fetch("/health", { cache: "no-store" });
    const body = await response.json();
    return { state: body.status, message: body.error?.message ?? "", progress: body.progress ?? null };
  } catch {
    return { state: "gone", message: GONE, progress: null };
  }
}

export async function models() {
  const response = await reach("/v1/models");
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data;
}

/**
 * Asks for a chat completion and calls `onText` with each piece of text as it comes.
 * @returns {Promise<{finishReason: string|null, timings: object|null, usage: object|null}>}
 */
export async function complete(request, { signal, onText }) {
  const response = await reach("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const end = { finishReason: null, timings: null, usage: null };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return end;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
    const choice = chunk.choices[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    end.finishReason = choice?.finish_reason ?? end.finishReason;
    end.timings = chunk.timings ?? end.timings;
    end.usage = chunk.usage ?? end.usage;
  }
  throw new ApiError("The connection ended in the middle of the answer.");
}

/** The data of the events of a stream. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const whole = rest.split("\n\n");
      rest = whole.pop();
      for (const event of whole) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(GONE);
  } finally {
    reader.releaseLock();
  }
}
