// The anthropic library for Node.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, MODEL, PICTURE, QUESTION, URL, tell } from "./asked.mjs";

const [head, data] = PICTURE.split(";base64,");
const source = { type: "base64", media_type: head.replace("data:", ""), data };
const content = [{ type: "image", source }, { type: "text", text: QUESTION }];
const asked = { model: MODEL, max_tokens: 4, messages: [{ role: "user", content }] };
const client = new Anthropic({ baseURL: URL.replace(/\/v1$/, ""), apiKey: KEY, maxRetries: 0 });
const message = await client.messages.create(asked);
const last = await client.messages.stream(asked).finalMessage();
tell({
  messages: message.content[0].text,
  messages_stream: last.content[0].text,
  verdicts: [message.modint.verdict],
});
