// What can be tried at once, with the bundled model too.

export const PROMPTS = [
  { text: "Tell me a story about a fox named Ada." },
  { text: "What is 12 + 7?" },
  { text: "What is Quire?" },
  { text: "What is the weather in Oslo?", tools: true },
];

const tool = (name, description, properties) => ({
  type: "function",
  function: {
    name,
    description,
    parameters: { type: "object", properties, required: Object.keys(properties) },
  },
});

export const TOOLS = [
  tool("get_weather", "The weather in a city, now.", { city: { type: "string" } }),
  tool("get_time", "The time in a city.", { city: { type: "string" } }),
];

export const SCHEMA = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 20 },
    age: { type: "integer", minimum: 0, maximum: 120 },
    city: { enum: ["Oslo", "Rome", "Lima"] },
  },
  required: ["name", "age", "city"],
  additionalProperties: false,
};
