// The openai library for Node.
import OpenAI from "openai";
import { CHAT, INPUT, KEY, MODEL, URL, tell } from "./asked.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: KEY, maxRetries: 0 });
const chat = await client.chat.completions.create({ model: MODEL, messages: CHAT });
let chatText = "";
for await (const chunk of await client.chat.completions.create({ model: MODEL, messages: CHAT, stream: true }))
  chatText += chunk.choices[0]?.delta?.content ?? "";
const response = await client.responses.create({ model: MODEL, input: INPUT });
let responseText = "";
for await (const event of await client.responses.create({ model: MODEL, input: INPUT, stream: true }))
  if (event.type === "response.output_text.delta") responseText += event.delta;
tell({
  chat: chat.choices[0].message.content,
  chat_stream: chatText,
  responses: response.output_text,
  responses_stream: responseText,
  verdicts: [chat.modint.verdict, response.modint.verdict],
});
