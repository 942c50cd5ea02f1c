# Bars of tokens/s, ours and the peer's; called by run.sh with data and picture set.
set terminal svg size 900,460 font "sans,12"
set output picture
set style fill solid 0.8 border -1
set boxwidth 0.7
set yrange [0:*]
set ylabel "real tokens/s, median"
set grid y
set xtics rotate by -30 noenhanced
set key off
plot data using 0:3:(stringcolumn(1) eq "breakwater" ? 0x2a6f97 : 0xb0b0b0):xtic(2) with boxes lc rgb variable, \
     data using 0:3:(sprintf("%.0f", $3)) with labels offset 0,0.6
