# Output of ncu with gpu__time_duration.sum and dram__bytes_read.sum: one line per kernel.
/Context [0-9]+, Stream/ { name = $0; sub(/^ */, "", name); sub(/Context.*/, "", name); gsub(/dg::cuda::/, "", name) }
/gpu__time_duration/ { time = $NF * ($2 == "ms" ? 1000 : $2 == "ns" ? 0.001 : 1) }
/dram__bytes_read/ { bytes = $NF * ($2 == "Gbyte" ? 1e9 : $2 == "Mbyte" ? 1e6 : $2 == "Kbyte" ? 1e3 : 1) }
/gpu__time_duration/ { n++; total += time; printf "%8.2f us %9.1f MB %8.0f GB/s  %s\n", time, bytes / 1e6, time > 0 ? bytes / time / 1e3 : 0, substr(name, 1, 120) }
END { printf "%d kernels, %.1f us\n", n, total }
