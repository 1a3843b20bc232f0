onconnection = ({ connection }) => {
  pools.app.postMessage(1, [connection]);
