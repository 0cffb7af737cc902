// Requests to the server. The token comes in the link's fragment, which no server sees, and is kept
// for this address and port alone.

const KEY = "graftlm-studio-token";

export function takeToken() {
  const found = location.hash.match(/^#token=([\w-]+)$/);
  if (!found) return;
  localStorage.setItem(KEY, found[1]);
  history.replaceState(null, "", `${location.pathname}#/rows`);
}

const authorization = () => ({ authorization: `Bearer ${localStorage.getItem(KEY) ?? ""}` });

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(method, path, body, signal) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, {
      method,
      headers: { ...authorization(), ...(body ? { "content-type": "application/json" } : {}) },
      body: body ? JSON.stringify(body) : undefined,
      cache: "no-store",
      signal,
    });
  } catch {
    throw new Refused(0, "");
  }
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer;
}

export async function api(method, path, body) {
  return (await ask(method, path, body)).json();
}

// The lines of an answer as they come. The signal breaks it off; the server notices that.
export async function* stream(method, path, body, signal) {
  const answer = await ask(method, path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const piece = await reader.read();
      if (piece.done) return;
      const lines = (rest + piece.value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield JSON.parse(line);
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw error;
    throw new Refused(0, "");
  } finally {
    reader.cancel().catch(() => {}); // it has been broken off already
  }
}

async function reason(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return text || String(answer.status);
  }
}

// fetch does not tell how much of a file has been sent.
export function upload(file, tell) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `/api/uploads/${encodeURIComponent(file.name)}`);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && tell(event.loaded / event.total);
    request.onerror = () => reject(new Refused(0, ""));
    request.onload = () => {
      let said = {};
      try {
        said = JSON.parse(request.responseText);
      } catch {
        said = { error: request.responseText };
      }
      if (request.status < 300) resolve(said);
      else reject(new Refused(request.status, said.error));
    };
    request.send(file);
  });
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
