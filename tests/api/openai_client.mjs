// What a program with the openai package for Node asks a server, told as one JSON object.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model, given] = process.argv.slice(2);
const { use, texts } = JSON.parse(given);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is a quire?" }];
const asked = { model, messages, seed: 3, max_tokens: 12, temperature: 1 };
const told = {};

const whole = await client.chat.completions.create(asked);
told.whole = whole.choices[0].message.content;
told.usage = whole.usage;

told.stream = "";
told.reasons = [];
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  told.stream += chunk.choices[0]?.delta?.content ?? "";
  const reason = chunk.choices[0]?.finish_reason;
  if (reason) told.reasons.push(reason);
}

const tools = [
  {
    type: "function",
    function: {
      name: "look",
      parameters: {
        type: "object",
        properties: { at: { type: "string", enum: ["here", "there"] } },
        required: ["at"],
        additionalProperties: false,
      },
    },
  },
];
const forced = { ...asked, max_tokens: 100, tools, tool_choice: "required" };
const calling = await client.chat.completions.create(forced);
told.calls = calling.choices[0].message.tool_calls;
told.final = await client.chat.completions.stream(forced).finalChatCompletion();
told.models = (await client.models.list()).data.map((one) => one.id);

told.errors = [];
for (const wrong of [{ model: "gpt-9" }, { temperature: -1 }, { temperature: -1, stream: true }]) {
  try {
    await client.chat.completions.create({ ...asked, ...wrong });
  } catch (error) {
    const { status, code, param } = error;
    told.errors.push({ kind: error.constructor.name, status, code, param });
  }
}

const Pet = z.object({ kind: z.enum(["cat", "fox"]), old: z.boolean() });
const pet = { ...asked, max_tokens: 100, response_format: zodResponseFormat(Pet, "pet") };
const responded = {
  ...{ model, input: messages, temperature: 0, max_output_tokens: 100 },
  text: { format: zodTextFormat(Pet, "pet") },
};
told.pets = [
  (await client.chat.completions.parse(pet)).choices[0].message.parsed,
  (await client.chat.completions.stream(pet).finalChatCompletion()).choices[0].message.parsed,
];
told.responses = [
  (await client.responses.parse(responded)).output_parsed,
  (await client.responses.stream(responded).finalResponse()).output_parsed,
];

// The package calls the function, and asks again with what it returned.
told.used = [];
for (const streamed of [false, true]) {
  const calls = [];
  const tool = {
    type: "function",
    function: {
      name: use.name,
      parameters: use.parameters,
      parse: JSON.parse,
      function: (found) => calls.push(found) && use.result,
    },
  };
  const runner = client.chat.completions.runTools({
    ...{ model, temperature: 0, stream: streamed, tools: [tool] },
    messages: [{ role: "user", content: use.question }],
  });
  told.used.push({ answer: await runner.finalContent(), calls });
}

told.embedding = (await client.embeddings.create({ model, input: texts })).data.map(
  (one) => one.embedding,
);

const long = { ...asked, max_tokens: 1900, ignore_eos: true };
const stream = await client.chat.completions.create({ ...long, stream: true });
for await (const _ of stream) break;
told.aborted = stream.controller.signal.aborted;

const busy = async () => (await (await fetch(new URL("/load", baseURL))).json()).server_load;
while (await busy());
const controller = new AbortController();
const waiting = client.chat.completions.create(long, { signal: controller.signal });
const rejected = waiting.then(() => null, (error) => error.constructor.name);
while (!(await busy()));
controller.abort();
told.rejected = await rejected;

process.stdout.write(JSON.stringify(told));
