// Arguments: port, number of workers, and `timed` where answers tell what was measured. The answer is
// the one that hyper's workers give.
const cluster = require("node:cluster");
const http = require("node:http");
const [port, workers] = process.argv.slice(2).map(Number);
const timed = process.argv[4] === "timed";
const accepted = Symbol("accepted");
// CLOCK_MONOTONIC: the same in all processes.
const now = () => Number(process.hrtime.bigint());

// The primary notes when it was given a connection, as soon as it hears of it, and tells the worker in
// the message that brings it. Needs --expose-internals.
function time_primary() {
  const { prototype } = require("internal/cluster/round_robin_handle");
  const distribute = prototype.distribute;
  prototype.distribute = function (error, handle) {
    if (handle) handle[accepted] = now();
    return distribute.call(this, error, handle);
  };
  cluster.on("fork", (worker) => {
    const send = worker.process.send;
    worker.process.send = function (message, handle, ...rest) {
      if (handle?.[accepted]) message.accepted = handle[accepted];
      return send.call(this, message, handle, ...rest);
    };
  });
}

function time_worker(server) {
  process.prependListener("internalMessage", (message, handle) => {
    if (message.act === "newconn" && handle) handle[accepted] = message.accepted;
  });
  server.on("connection", (socket) => {
    const begin = socket._handle[accepted];
    socket.prependOnceListener("data", () => (socket.firstRead = now() - begin));
    // A listener added in this way makes http read through the stream, not around it.
    socket.on("data", () => {});
  });
}

if (cluster.isPrimary) {
  if (timed) time_primary();
  cluster.schedulingPolicy = cluster.SCHED_RR;
  for (let i = 0; i < workers; i++) cluster.fork();
} else {
  const server = http.createServer((request, response) => {
    response.setHeader("content-length", 6);
    if (timed) response.setHeader("x-first-read", request.socket.firstRead);
    response.end("hello\n");
  });
  if (timed) time_worker(server);
  server.listen({ port, host: "0.0.0.0", backlog: 4096 });
}
