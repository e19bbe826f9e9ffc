// Uses OpenAI's client for Node against a running weir and prints what it saw as JSON.
//   node sdk.mjs BASE_URL KEY everything|death|errors|abort
import OpenAI, { toFile } from "openai";

const [baseURL, apiKey, what] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "What is a weir?" }];
const model = "m";

async function everything() {
  const seen = {};
  seen.chat = (await client.chat.completions.create({ model, messages })).choices[0].message.content;
  seen.stream = "";
  seen.streamUsageEvents = 0;
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    if (chunk.choices.length === 0) seen.streamUsageEvents += 1;
    else seen.stream += chunk.choices[0].delta.content ?? "";
  }
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } })) {
    if (chunk.usage) seen.usage = chunk.usage.total_tokens;
  }
  seen.completion = (await client.completions.create({ model, prompt: "x" })).choices[0].text;
  seen.completionStream = "";
  for await (const part of await client.completions.create({ model, prompt: "x", stream: true })) seen.completionStream += part.choices[0].text;
  seen.response = (await client.responses.create({ model, input: "x" })).output_text;
  seen.responseStream = "";
  for await (const event of await client.responses.create({ model, input: "x", stream: true })) {
    if (event.type === "response.output_text.delta") seen.responseStream += event.delta;
  }
  seen.embedding = (await client.embeddings.create({ model, input: "x" })).data[0].embedding;
  seen.image = (await client.images.generate({ model, prompt: "x" })).data[0].b64_json;
  seen.speech = (await (await client.audio.speech.create({ model, voice: "alloy", input: "x" })).arrayBuffer()).byteLength;
  const file = await toFile(Buffer.alloc(100_000, 7), "a.mp3", { type: "audio/mpeg" });
  seen.transcription = (await client.audio.transcriptions.create({ model, file })).text;
  seen.models = [];
  for await (const one of client.models.list()) seen.models.push(one.id);
  seen.models.sort();
  seen.moderation = (await client.moderations.create({ model, input: "x" })).results[0].flagged;
  return seen;
}

async function death() {
  const seen = { text: "" };
  try {
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) seen.text += chunk.choices[0].delta.content ?? "";
  } catch (error) {
    seen.error = error.constructor.name;
    seen.message = error.message;
  }
  return seen;
}

async function errors() {
  const status = async (asked, request) => {
    try {
      await asked.chat.completions.create(request);
    } catch (error) {
      return error.status;
    }
  };
  return {
    unknownModel: await status(client, { model: "no-such-model-at-all", messages }),
    badKey: await status(new OpenAI({ baseURL, apiKey: "wk_" + "A".repeat(43), maxRetries: 0 }), { model, messages }),
  };
}

async function abort() {
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const _ of stream) {
    stream.controller.abort();
    break;
  }
  return { aborted: stream.controller.signal.aborted };
}

const seen = await { everything, death, errors, abort }[what]();
console.log(JSON.stringify(seen));
process.exit(0);
