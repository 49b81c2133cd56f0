"""What travels: the records on every topic and the answers on every port, as types and as bytes."""
