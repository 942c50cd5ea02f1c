# What scaling.sh measured: tokens/s over cores at work with the ideal line of each kind, and the share of a step between ranks.
# Called with data and picture set.
set terminal svg size 1100,460 font "sans,12"
set output picture
set datafile separator ","
kinds = "strong weak threads"
colours = "0x2a6f97 0x6a994e 0xc1440e"
only(kind, value) = strcol(1) eq kind ? value : 1 / 0
set multiplot layout 1, 2
set logscale xy 2
set xlabel "ranks x threads"
set ylabel "tokens/s"
set key left top
set grid
plot for [i = 1:3] data every ::1 using (only(word(kinds, i), $2 * $3)):6 with linespoints pt 7 lc rgb int(word(colours, i)) title word(kinds, i), \
     for [i = 1:3] data every ::1 using (only(word(kinds, i), $2 * $3)):($6 / $8) with lines dt 2 lc rgb int(word(colours, i)) title (i == 1 ? "ideal" : "")
unset logscale y
set yrange [0:100]
set ylabel "% of a step between ranks"
plot for [i = 1:3] data every ::1 using (only(word(kinds, i), $2 * $3)):(100 * $9) with linespoints pt 7 lc rgb int(word(colours, i)) title word(kinds, i)
unset multiplot
