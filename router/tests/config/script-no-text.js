// A name in Latin-1:
const name = "München";
onconnection = ({ connection }) => connection.reject(403);
