# A step as bars over time, from the timeline.csv in the output folder of a training stage:
#   gnuplot -e "data='OUTPUT/timeline.csv'; picture='step.svg'" benchmarks/timeline.gp        with from=, to= (ms): a part of it
set terminal svg size 1100,260 font "sans,12"
set output picture
set datafile separator ","
lane(what) = what eq "in flight" ? 1 : what eq "gather" ? 2 : 3
colour(what) = what eq "in flight" ? 0xb0b0b0 : what eq "gather" ? 0xc1440e : what eq "forward" ? 0x2a6f97 : what eq "backward" ? 0x61a5c2 : 0x6a994e
if (!exists("from")) from = 0
stats data using 4 every ::1 nooutput
if (!exists("to")) to = STATS_max
set xrange [from:to]
set yrange [0.4:3.6]
set xlabel "ms"
set ytics ("in flight" 1, "gather: waits, unpacks" 2, "computes" 3)
set style fill solid 0.9 border lc rgb "white"
set key off
plot data every ::1 using 3:(lane(strcol(1))):3:4:(lane(strcol(1)) - 0.4):(lane(strcol(1)) + 0.4):(colour(strcol(1))) with boxxyerror lc rgb variable, \
     data every ::1 using (($3 + $4) / 2):(($4 - $3) > (to - from) / 60 ? lane(strcol(1)) : 1 / 0):2 with labels font ",9"
