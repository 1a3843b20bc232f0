const NUM_WORKERS = pools.app.workers.length;
const workers = pools.app.workers;
let numReqs = 0;

onconnection = ({ connection: s }) => {
  let hv = 0;
  s.remoteAddress?.split('.').forEach((v) => {
    hv += parseInt(v);
  });
  const wid = hv % NUM_WORKERS;
  console.debug('Request from ' + s.remoteAddress + ' going to worker ' + wid);
  workers[wid].postMessage(++numReqs, [s]);
};
