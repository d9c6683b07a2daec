// What a program with the openai package for Node asks a server, told as one JSON object.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
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

const stream = await client.chat.completions.create({ ...asked, max_tokens: 1000, stream: true });
for await (const _ of stream) break;
told.aborted = stream.controller.signal.aborted;

process.stdout.write(JSON.stringify(told));
