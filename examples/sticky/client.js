// Clients of socket.io, each with cookies of its own: long polling first, then a websocket. Prints the worker of each
// request. `node client.js http://127.0.0.1:8080 [CLIENTS]`
"use strict";

const { subscribe } = require("node:diagnostics_channel");
const http = require("node:http");
const { io } = require("socket.io-client");

const [url, count = "4"] = process.argv.slice(2);

// Every request of this process, with what its answer says.
subscribe("http.client.request.start", ({ request }) => {
  const { searchParams } = new URL(request.path, url);
  const note = (response) => {
    const [client, transport] = [searchParams.get("client"), searchParams.get("transport")];
    const { localPort } = response.socket;
    const { statusCode, headers } = response;
    console.log(`client ${client} ${transport} ${request.method} port=${localPort} ${statusCode} ${headers["x-worker"]}`);
  };
  request.once("response", note);
  request.once("upgrade", note);
});

// Says something, waits until long polling has become a websocket, and says something again.
async function talk(client) {
  // Every other one keeps its connections open; the rest open one for each request.
  const agent = client % 2 === 0 ? new http.Agent({ keepAlive: true }) : undefined;
  const socket = io(url, { agent, query: { client }, withCredentials: true, reconnection: false });
  const { engine } = socket.io;
  const failed = new Promise((_, reject) => {
    socket.once("connect_error", reject);
    socket.once("disconnect", (reason) => reject(new Error(reason)));
    engine.once("upgradeError", reject);
    setTimeout(() => reject(new Error("too late")), 30_000).unref();
  });
  const upgraded = new Promise((resolve) => engine.once("upgrade", resolve));
  const talked = (async () => {
    await new Promise((resolve) => socket.once("connect", resolve));
    const [words, before] = await socket.emitWithAck("say", "hello");
    await upgraded;
    const [others, after] = await socket.emitWithAck("say", "again");
    console.log(`client ${client} said ${words} to ${before} and ${others} to ${after} by ${engine.transport.name}`);
  })();
  try {
    await Promise.race([talked, failed]);
  } finally {
    socket.close();
    agent?.destroy();
  }
}

(async () => {
  let code = 0;
  const clients = Array.from({ length: Number(count) }, (_, client) => talk(client));
  for (const [client, { status, reason }] of (await Promise.allSettled(clients)).entries()) {
    if (status === "rejected") {
      console.log(`client ${client} failed: ${reason.message}`);
      code = 1;
    }
  }
  // A client that fails in the middle of its change to a websocket would go on.
  process.exit(code);
})();
