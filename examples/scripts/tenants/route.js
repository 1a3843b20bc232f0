// Ten thousand tenants and the worker of each. Yours would be a table in place of this loop; it is
// built once, when the script is loaded.
const tenants = new Map();
for (let number = 0; number < 10_000; number++) {
  tenants.set(`tenant-${number}.example.org`, number % pools.app.workers.length);
}

onconnection = async ({ connection }) => {
  const request = await connection.http();
  const host = request?.host ?? '';
  const slot = tenants.get(host);
  if (slot === undefined) return connection.reject(404);
  pools.app.workers[slot].postMessage({ tenant: host }, [connection]);
};
