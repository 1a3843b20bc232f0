const repairing = true;
const staff = ['127.0.0.0/8', '10.8.0.0/16', '::1/128'];

onconnection = ({ connection }) => {
  const inside = staff.some((network) => inNetwork(connection.remoteAddress, network));
  const pool = repairing && !inside ? pools.maintenance : pools.app;
  pool.postMessage(null, [connection]);
};
