// What every program asks, and how it tells what it got: one JSON object on its last line.
export const [URL, MODEL, PICTURE] = process.argv.slice(2);
export const KEY = "client-key";
export const QUESTION = "The caption says that the shape is blue. What colour is the shape?";
const text = { type: "text", text: QUESTION };
export const CHAT = [{ role: "user", content: [{ type: "image_url", image_url: { url: PICTURE } }, text] }];
const image = { type: "input_image", image_url: PICTURE, detail: "auto" };
export const INPUT = [{ role: "user", content: [image, { type: "input_text", text: QUESTION }] }];
export const tell = (said) => console.log(JSON.stringify(said));
