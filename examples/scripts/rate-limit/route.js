const RATE = 10; // new connections a second
const BURST = 20; // at once
const MOST = 10_000; // addresses remembered: the map is bounded whoever comes

// How many an address has left, and when that was so.
const buckets = new Map();

onconnection = ({ connection }) => {
  const now = Date.now();
  const address = connection.remoteAddress;
  const bucket = buckets.get(address) ?? { left: BURST, at: now };
  const left = Math.min(BURST, bucket.left + ((now - bucket.at) / 1000) * RATE);
  // The address goes to the end of the map, so the first one is the one not seen for longest.
  buckets.delete(address);
  if (buckets.size >= MOST) buckets.delete(buckets.keys().next().value);
  buckets.set(address, { left: Math.max(0, left - 1), at: now });
  if (left < 1) return connection.reject(429);
  pools.app.postMessage(null, [connection]);
};
