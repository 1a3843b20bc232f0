// Arguments: port, number of workers. The answer is the one that hyper's workers give.
const cluster = require("node:cluster");
const http = require("node:http");
const [port, workers] = process.argv.slice(2).map(Number);

if (cluster.isPrimary) {
  cluster.schedulingPolicy = cluster.SCHED_RR;
  for (let i = 0; i < workers; i++) cluster.fork();
} else {
  http
    .createServer((request, response) => {
      response.setHeader("content-length", 6);
      response.end("hello\n");
    })
    .listen({ port, host: "0.0.0.0", backlog: 4096 });
}
