onconnection = ({ connection }) => {
  const { remoteAddress } = connection;
  if (inNetwork(remoteAddress, "10.0.0.0/8")) return pools.staff.postMessage(1, [connection]);
  pools.app.postMessage(1, [connection]);
};
