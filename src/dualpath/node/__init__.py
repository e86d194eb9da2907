"""The node agent: arena, storage reader and writer, hand-over between nodes, layer streams; and the engines' client."""
