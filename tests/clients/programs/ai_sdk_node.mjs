// The AI SDK: its provider for OpenAI, by chat and by responses, and the one for servers like it.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { KEY, MODEL, PICTURE, QUESTION, URL, tell } from "./asked.mjs";

const openai = createOpenAI({ baseURL: URL, apiKey: KEY });
const like = createOpenAICompatible({ name: "modint", baseURL: URL, apiKey: KEY });
const content = [{ type: "image", image: PICTURE }, { type: "text", text: QUESTION }];
const messages = [{ role: "user", content }];
const said = {};
for (const [name, model] of [["chat", openai.chat(MODEL)], ["responses", openai(MODEL)], ["like", like(MODEL)]]) {
  said[name] = (await generateText({ model, messages, maxRetries: 0 })).text;
  said[`${name}_stream`] = await streamText({ model, messages, maxRetries: 0 }).text;
}
tell(said);
