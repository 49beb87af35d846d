// Reading an answer: a response's body in, what the server says out, as it comes.

// The server says something every ten seconds, if only a ping: after so many of silence the connection is dead, though
// nothing has told the browser. This is what happens to a phone that changes networks.
const SILENCE = 35_000;

/** What went wrong, in the server's words. */
export class AnswerError extends Error {
  constructor(told, otherwise) {
    super(typeof told?.message === "string" && told.message.trim() ? told.message : otherwise);
    this.cutOff = ["interrupted", "timeout", "connection_error"].includes(told?.type);
  }
}

/** The connection ended before the answer did. */
export class ConnectionLost extends Error {}

/**
 * Yields the chunks of an answer, as objects, until the server says that it is complete.
 *
 * @param {Promise<Response>} asking what `fetch` returned
 * @param {AbortController} abort cancels it
 */
export async function* chunksOf(asking, abort) {
  const response = await asking.catch(lost);
  if (!response.ok) {
    const body = await response.json().catch(() => null); // a proxy may have put its own web page there
    throw new AnswerError(body?.error, `The server answered with status ${response.status}.`);
  }
  for await (const { event, data } of events(response.body.getReader(), abort)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (event === "error" || chunk.error) throw new AnswerError(chunk.error, "The answer failed.");
    yield chunk;
  }
  throw new ConnectionLost();
}

function lost(error) {
  throw error.name === "AbortError" ? error : new ConnectionLost();
}

/** Yields the events of a stream of Server-Sent Events; comments among them are only a sign of life. */
async function* events(reader, abort) {
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await alive(reader.read(), abort);
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever leaves the loop early has left the stream
  }
}

function parsed(block) {
  const event = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(event|data): ?(.*)$/.exec(line) ?? [];
    if (name === "event") event.event = value;
    if (name === "data") event.data += (event.data && "\n") + value;
  }
  return event;
}

/** Waits for a read, but not for ever. */
async function alive(reading, abort) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => {
      reject(new ConnectionLost());
      abort.abort();
    }, SILENCE);
  });
  try {
    return await Promise.race([reading.catch(lost), silence]);
  } finally {
    clearTimeout(timer);
  }
}
