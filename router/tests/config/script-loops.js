const ports = [];

function fill() {
  while (true) ports[0] = 1;
}
fill();

onconnection = ({ connection }) => pools.app.postMessage(1, [connection]);
