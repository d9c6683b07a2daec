// What is asked of the server that this page came from.

import { kept } from "./dom.js";

export const apiKey = kept("sessionStorage", "quire-key");

// An answer that is an error, in the server's words.
export class Failure extends Error {
  constructor(message, { status = 0, param = null, requestId = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.requestId = requestId;
  }
}

export function failureOf(error, status = 0) {
  const { message, param = null, request_id: requestId = null } = error ?? {};
  return new Failure(message ?? `The server answered ${status}.`, { status, param, requestId });
}

// GET a path, or POST it a body. Throws Failure, and AbortError where `signal` says so.
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey.value) headers.Authorization = `Bearer ${apiKey.value}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(`The server cannot be reached: ${error.message}.`);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw failureOf(told?.error, response.status);
}
