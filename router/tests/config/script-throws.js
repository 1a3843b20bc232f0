const names = new Map();

function add(host, pool) {
  if (!pools[pool]) throw new RangeError(`no pool ${pool}`);
  names.set(host, pool);
}
add("a.example", "app");
/* Zürich */ add(null.host, "app");

onconnection = ({ connection }) => pools.app.postMessage(1, [connection]);
